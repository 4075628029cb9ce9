"""What runs need before they start: models, data and conversions, made or found missing."""
