"""What a model's text means: reasoning, tool calls, and the rest, read as it comes.

A request's readers see its text in pieces and give the same for any pieces.  Nothing here knows HTTP or tokens.
"""
