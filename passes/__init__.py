"""The passes that come with graphopt: one rewrite per file, named like its command."""
