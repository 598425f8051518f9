"""Weight files of other libraries, read without executing anything."""
