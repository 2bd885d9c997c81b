"""Environments that point a program at the servers of the tests."""

from __future__ import annotations


def fast_settings() -> dict[str, str]:
    """Return the settings for a sandbox whose clock runs at 100 times the speed."""
    return {
        "VEOGEN_REQUESTS_PER_MINUTE": "12000",
        "VEOGEN_IMAGE_POLL_SECONDS": "0.03",
        "VEOGEN_VIDEO_POLL_SECONDS": "0.05",
        "VEOGEN_IN_DOUBT_SECONDS": "1",
    }


def s3_environment(s3_server: str) -> dict[str, str]:
    """Return the environment with which boto3 reaches the S3 server of the tests."""
    return {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
