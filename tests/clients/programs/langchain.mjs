// LangChain's wrapper of dall-e in JavaScript.
import { DallEAPIWrapper } from "@langchain/openai";

const tool = new DallEAPIWrapper({ apiKey: "none", openAIApiKey: "none", baseUrl: process.argv[2], model: "dall-e-3", n: 1 });
const answer = await tool.invoke("a red house");
if (!String(answer).startsWith("http")) throw new Error(`no link: ${answer}`);
console.log("made");
