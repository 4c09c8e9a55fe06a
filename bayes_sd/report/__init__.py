"""The page that shows a fit: one HTML file, and the law in it as JavaScript."""
