"""Stand-ins for TF Serving's two protocols, with the runtime that it uses behind them."""

import base64
import contextlib
import http.server
import json
import threading
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests import c_api


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, name, session):
        self.name, self.session = name, session

    def Predict(self, request, context):  # noqa: N802
        assert request.model_spec.name == self.name
        feeds = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        try:
            outputs = self.session.run(request.model_spec.signature_name or "serving_default", **feeds)
        except c_api.Failed as failed:
            codes = {c_api.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT}
            context.abort(codes.get(failed.code, grpc.StatusCode.INTERNAL), str(failed))
        response = predict_pb2.PredictResponse(model_spec=request.model_spec)
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


@contextlib.contextmanager
def grpc_server(name, session):
    """The port of a gRPC server."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(2), options=unlimited)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Service(name, session), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def rest_answer(session, body):
    """The answer to a predict call in the row format, https://www.tensorflow.org/tfx/serving/api_rest."""
    signature = body.get("signature_name", "serving_default")
    rows, definition = body["instances"], session.signatures[signature]
    if len(definition.inputs) == 1 and not (isinstance(rows[0], dict) and set(rows[0]) == set(definition.inputs)):
        (only,) = definition.inputs
        rows = [{only: row} for row in rows]
    feeds = {}
    for name, proto in definition.inputs.items():
        values = [row[name] for row in rows]
        is_string = proto.dtype == tf.string.as_datatype_enum
        feeds[name] = [base64.b64decode(v["b64"]) for v in values] if is_string else np.array(values, np.float32)
    outputs = session.run(signature, **feeds)
    assert {len(value) for value in outputs.values()} == {len(rows)}
    if len(outputs) == 1:
        (only,) = outputs.values()
        return {"predictions": only.tolist()}
    return {"predictions": [{name: value[row].tolist() for name, value in outputs.items()} for row in range(len(rows))]}


@contextlib.contextmanager
def http_server(name, session):
    """The port of an HTTP server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == f"/v1/models/{name}:predict"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, answer = 200, rest_answer(session, body)
            except c_api.Failed as failed:
                status, answer = 400 if failed.code == c_api.INVALID_ARGUMENT else 500, {"error": str(failed)}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
