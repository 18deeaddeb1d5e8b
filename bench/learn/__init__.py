"""Do the memories learn? Small models, trained from nothing."""
