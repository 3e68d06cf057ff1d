"""Hold the documents to the code: links, the reference, the runbook, the commands."""
