"""What a run did, as data and in the forms that people and programs read."""
