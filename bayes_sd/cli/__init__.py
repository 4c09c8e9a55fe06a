"""The command line: thin verbs, one for each method of a fit and each function of the package."""
