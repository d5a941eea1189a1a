"""A chapter of the report each: frames, figures, and the section made of them."""
