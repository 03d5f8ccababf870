"""``redraft data``: prompts and responses to train drafts on."""
