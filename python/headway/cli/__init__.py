"""The command `headway`: a room for each of its subcommands."""
