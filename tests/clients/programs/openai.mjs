// The openai package of npm: a default picture, and the size that programs ask for most.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none" });
for (const model of ["dall-e-2", "dall-e-3", "gpt-image-1"]) {
  for (const size of [{}, { size: "1024x1024" }]) {
    const answer = await client.images.generate({ model, prompt: "a red house", ...size });
    const [picture] = answer.data;
    if (!(picture.url || picture.b64_json)) throw new Error(`no picture of ${model}`);
  }
}
console.log("made");
