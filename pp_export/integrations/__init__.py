"""What training frameworks call at save time, in the shapes that they call it. See docs/integrations."""
