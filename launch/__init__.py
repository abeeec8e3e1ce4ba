"""What runs and where: the command line, recipes, Ray. The only room that imports Ray."""
