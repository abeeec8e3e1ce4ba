"""The command line: arguments and help of each verb, nothing else."""
