// The AI SDK, as its documentation's first example has it.
import { createOpenAI } from "@ai-sdk/openai";
import * as ai from "ai";

const openai = createOpenAI({ baseURL: process.argv[2], apiKey: "none" });
const generate = ai.generateImage ?? ai.experimental_generateImage;
for (const size of [undefined, "1024x1024"]) {
  const { image } = await generate({ model: openai.image("dall-e-3"), prompt: "a red house", size });
  if (!image.base64) throw new Error("no picture");
}
console.log("made");
