"""Speed and accuracy, side by side: what the README claims, measured."""
