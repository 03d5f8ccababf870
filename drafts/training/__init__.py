"""Training of drafts: data, teacher's states, loss, loop.  The target comes in through ``teacher.Teacher``."""
