"""The whole story on a real small model: its prompts, its fine-tune, and the commands a user would type."""
