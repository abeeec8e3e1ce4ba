"""One mixture-of-experts layer: gates, routers, choice, dispatch, experts, balance."""
