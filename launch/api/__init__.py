"""What `import fleximoe` gives: the commands' own code, called from Python."""
