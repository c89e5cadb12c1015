"""What a run can be refused for after its options were read: the command shows it in one line."""


class TrainingError(ValueError):
    """Model, data and folder do not go together as asked; the message says what to do."""
