"""The entry points' shared code: flags, exit codes, the compilation cache."""
