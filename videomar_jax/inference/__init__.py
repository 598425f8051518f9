"""From images and prompts to video files."""
