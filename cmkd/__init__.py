"""The workshop behind the scripts: six rooms, one subject each."""
