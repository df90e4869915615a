"""Train, adversarially train, and honestly evaluate the robustness of speaker recognizers."""
