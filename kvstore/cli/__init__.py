"""The command line: `kvstore`. Each command's file is loaded when the command is used."""
