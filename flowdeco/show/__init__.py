"""What one sees of a workflow."""
