"""The process: errors, whole files, several processes, what the machine can do."""
