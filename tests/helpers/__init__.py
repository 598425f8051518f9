"""What several tests share: small models, small runs, recorded files."""
