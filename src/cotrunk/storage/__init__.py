"""Files that several machines share: in a folder that all of them see, or at a URL such as s3://bucket/run."""
