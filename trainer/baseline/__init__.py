"""Boosted trees and a linear model on whole-record statistics: what anybody should see before training."""
