"""What all pages share: what a page holds, how it runs, what is kept of it and how it is shown."""
