"""What a person looks at: one HTML file that tells what a result is, whether it is sound, and what a model will see."""
