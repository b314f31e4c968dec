"""moto's server, whose check of signatures sees query strings as they were sent: it decodes slashes in them, so that it
refuses every listing below a folder, boto's too."""
import moto.iam.access_control as access
from moto.server import main

create = access.IAMRequestBase._create_aws_request


def as_sent(self):
    path, mark, query = self._path.partition("?")
    self._path = path + mark + query.replace("/", "%2F")
    return create(self)


access.IAMRequestBase._create_aws_request = as_sent

if __name__ == "__main__":
    main()
