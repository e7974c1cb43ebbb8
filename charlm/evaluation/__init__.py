"""Questions asked of a trained model, a file each."""
