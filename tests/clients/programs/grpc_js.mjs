// @grpc/grpc-js with the .proto files as they are.
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [, , , address, protos] = process.argv;
const loaded = loadSync("triptych/v1/pipeline.proto", { includeDirs: [protos], keepCase: true, oneofs: true });
const { PipelineService } = grpc.loadPackageDefinition(loaded).triptych.v1;
const client = new PipelineService(address, grpc.credentials.createInsecure(), {
  "grpc.max_receive_message_length": 32 << 20,
});
const spec = { prompt: "a red house", generate: { count: 1 }, refine: { count: 1 }, upscale: {} };
const enlarged = await new Promise((resolve, reject) => {
  let last;
  client
    .StreamRun({ spec })
    .on("data", ({ event }) => (last = event.image_ready ?? last))
    .on("error", reject)
    .on("end", () => resolve(last?.image));
});
if (enlarged?.width !== 1024 || !enlarged.data.length) throw new Error("no picture of 1024 px");
console.log("made");
