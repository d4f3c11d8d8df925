"""What the course on recurrent networks claims, measured: each experiment is numbers, a picture and a paragraph."""
