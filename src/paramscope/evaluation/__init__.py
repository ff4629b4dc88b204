"""What a model is judged by: perplexity and membership inference."""
