"""What memory the stages of the workflow take: a table a file of rules."""
