"""A trained model in other forms: a web page that runs it."""
