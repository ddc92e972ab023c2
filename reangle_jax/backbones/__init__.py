"""What a video model is to the stages: what binds a family's networks into loading, conditioning and sampling."""
