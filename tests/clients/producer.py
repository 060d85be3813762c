"""Sends document requests with confluent-kafka as it is out of the box, schemas from the registry.

Arguments: bootstrap servers, URL of the registry, topic. Standard input: one JSON object a line,
{"key": text or null, "request": {request_id, tenant, document, action, content or null}}.
"""

import json
import sys

from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

brokers, registry_url, topic = sys.argv[1:]
registry = SchemaRegistryClient({"url": registry_url})
schema = registry.get_latest_version(f"{topic}-value").schema.schema_str
settings = {"auto.register.schemas": False, "use.latest.version": True}
serialize = AvroSerializer(registry, schema, conf=settings)
context = SerializationContext(topic, MessageField.VALUE)
# Nothing but the address: where a client puts records by itself is what is tested.
producer = Producer({"bootstrap.servers": brokers})
failures = []


def delivered(error, _record):
    if error is not None:
        failures.append(str(error))


for line in sys.stdin:
    record = json.loads(line)
    request = record["request"]
    if request["content"] is not None:
        request["content"] = request["content"].encode()
    producer.produce(topic, key=record["key"], value=serialize(request, context), on_delivery=delivered)
    producer.poll(0)
left = producer.flush(60)
if left or failures:
    sys.exit(f"{left} records are not delivered; failures: {failures[:3]}")
