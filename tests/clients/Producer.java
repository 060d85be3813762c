import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.Future;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.generic.GenericRecordBuilder;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.EncoderFactory;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * Sends document requests with Kafka's own client as it is out of the box, schemas from the registry.
 *
 * <p>Arguments and standard input as of producer.py beside it. Confluent's serializer is not on Maven Central, so the
 * five bytes that it puts before the Avro are written here.
 */
public final class Producer {
    public static void main(String[] arguments) throws Exception {
        String topic = arguments[2];
        ObjectMapper json = new ObjectMapper();
        JsonNode latest = json.readTree(get(arguments[1] + "/subjects/" + topic + "-value/versions/latest"));
        Schema schema = new Schema.Parser().parse(latest.get("schema").asText());

        // Nothing but what it can't do without: where a client puts records by itself is what is tested.
        Properties settings = new Properties();
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        settings.put("value.serializer", "org.apache.kafka.common.serialization.ByteArraySerializer");
        List<Future<?>> sent = new ArrayList<>();
        try (KafkaProducer<String, byte[]> producer = new KafkaProducer<>(settings);
                BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8))) {
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                JsonNode record = json.readTree(line);
                byte[] value = encode(schema, latest.get("id").asInt(), record.get("request"));
                Future<?> one = producer.send(new ProducerRecord<>(topic, record.get("key").textValue(), value));
                if (one.isDone()) {
                    // Mostly a failure, such as a topic that is not there: the next would wait as long for it.
                    one.get();
                }
                sent.add(one);
            }
            for (Future<?> one : sent) {
                one.get();
            }
        }
    }

    private static String get(String url) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url)).build();
        HttpResponse<String> answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() != 200) {
            throw new IllegalStateException(url + " answers " + answer.statusCode() + ": " + answer.body());
        }
        return answer.body();
    }

    /** Fields that are not set take their defaults. */
    private static byte[] encode(Schema schema, int id, JsonNode request) throws Exception {
        GenericRecordBuilder builder = new GenericRecordBuilder(schema);
        for (String name : List.of("request_id", "tenant", "document")) {
            builder.set(name, request.get(name).textValue());
        }
        builder.set("action", new GenericData.EnumSymbol(schema.getField("action").schema(), request.get("action").textValue()));
        if (!request.get("content").isNull()) {
            builder.set("content", ByteBuffer.wrap(request.get("content").textValue().getBytes(StandardCharsets.UTF_8)));
        }
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        bytes.write(0);
        bytes.write(ByteBuffer.allocate(4).putInt(id).array());
        BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(bytes, null);
        new GenericDatumWriter<GenericRecord>(schema).write(builder.build(), encoder);
        encoder.flush();
        return bytes.toByteArray();
    }
}
