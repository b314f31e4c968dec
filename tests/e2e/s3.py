"""An S3 server that is not ours (moto) and how a cluster is told about it."""
import base64
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml
from conftest import free_port

REGION = "eu-central-1"


def boto(endpoint, service="s3", keys=("setup", "setup")):
    import boto3
    from botocore.config import Config

    config = Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"})
    return boto3.client(service, endpoint_url=endpoint, region_name=REGION, aws_access_key_id=keys[0],
                        aws_secret_access_key=keys[1], config=config)


class Store:
    """One moto server, with an account whose keys it insists on."""

    def __init__(self, log):
        self.port, self.log, self.process = free_port(), log, None
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def start(self):
        self.process = subprocess.Popen([sys.executable, Path(__file__).with_name("moto_server.py"), "-H", "127.0.0.1", "-p", str(self.port)],
                                        stdout=open(self.log, "ab"), stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            try:
                urllib.request.urlopen(self.endpoint + "/moto-api/", timeout=5).close()
                return self
            except OSError:
                time.sleep(0.05)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)

    def account(self, *buckets):
        """Makes buckets and a user that may do everything; from then on other keys are refused. Returns its keys."""
        iam = boto(self.endpoint, "iam")
        iam.create_user(UserName="pipelines")
        allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        iam.put_user_policy(UserName="pipelines", PolicyName="all", PolicyDocument=json.dumps(allow))
        key = iam.create_access_key(UserName="pipelines")["AccessKey"]
        self.keys = key["AccessKeyId"], key["SecretAccessKey"]
        for bucket in buckets:
            boto(self.endpoint).create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        self.check_keys()
        return self.keys

    def check_keys(self):
        """From now on moto checks the signature and the policy of every request."""
        request = urllib.request.Request(self.endpoint + "/moto-api/reset-auth", data=b"0", method="POST",
                                         headers={"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=5).close()

    def client(self):
        return boto(self.endpoint, keys=self.keys)

    def names(self, bucket, prefix=""):
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


def apply(server, kind, name, body):
    """Creates or replaces an object of the platform's namespace through the Kubernetes API, as kubectl would."""
    config = yaml.safe_load(server.kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    namespace = config["contexts"][0]["context"].get("namespace", "default")
    base = f"{cluster['server']}/api/v1/namespaces/{namespace}/{kind}"
    headers = {"Content-Type": "application/json"}
    if user.get("token"):
        headers["Authorization"] = f"Bearer {user['token']}"
    singular = {"configmaps": "ConfigMap", "secrets": "Secret"}[kind]
    text = json.dumps({"apiVersion": "v1", "kind": singular, "metadata": {"name": name}, **body}).encode()

    def call(method, url):
        urllib.request.urlopen(urllib.request.Request(url, data=text, method=method, headers=headers), timeout=10).close()

    try:
        call("POST", base)
    except urllib.error.HTTPError as error:
        assert error.code == 409, error.read()
        call("PUT", f"{base}/{name}")


def secret(server, name, keys):
    data = {key: base64.b64encode(value.encode()).decode() for key, value in zip(("access", "private"), keys)}
    apply(server, "secrets", name, {"type": "Opaque", "data": data})


def provider(server, store, secret_name, root=None, **more):
    """The kfp-launcher ConfigMap: every s3 and minio bucket is in `store`, opened with the keys of a Secret."""
    ref = {"secretName": secret_name, "accessKeyKey": "access", "secretKeyKey": "private"}
    default = {"endpoint": store.endpoint.removeprefix("http://"), "region": REGION, "disableSSL": True,
               "forcePathStyle": True, "credentials": {"fromEnv": False, "secretRef": ref}, **more}
    providers = {"s3": {"default": default}, "minio": {"default": default}}
    data = {"providers": yaml.safe_dump(providers), **({"defaultPipelineRoot": root} if root else {})}
    apply(server, "configmaps", "kfp-launcher", {"data": data})
