// What face-api.js itself finds: node face_api.mjs PACKAGE PICTURE.rgb HEIGHT WIDTH OUTPUT.json
// Its bundle is made for browsers; without a version of node it takes this for one.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, picture, height, width, output] = process.argv.slice(2);
Object.defineProperty(process, 'versions', { value: {} });
globalThis.window = globalThis;
const faceapi = await import(pathToFileURL(path.join(folder, 'dist', 'face-api.esm.js')));
const { tf } = faceapi;
tf.env().setPlatform('plain', {
  isTypedArray: (one) => ArrayBuffer.isView(one) && !(one instanceof DataView),
  now: () => performance.now(),
  encode: (text) => new TextEncoder().encode(text),
  decode: (content) => new TextDecoder().decode(content),
});
await tf.setBackend('cpu');
await tf.ready();
class Absent {}
faceapi.env.setEnv({ Canvas: Absent, CanvasRenderingContext2D: Absent, Image: Absent, ImageData: Absent, Video: Absent });

const model = path.join(folder, 'model');
const manifest = JSON.parse(fs.readFileSync(path.join(model, 'ssd_mobilenetv1_model-weights_manifest.json')));
const shards = fs.readFileSync(path.join(model, manifest[0].paths[0]));
const bytes = shards.buffer.slice(shards.byteOffset, shards.byteOffset + shards.length);
faceapi.nets.ssdMobilenetv1.loadFromWeightMap(tf.io.decodeWeights(bytes, manifest[0].weights));

const rgb = tf.tensor3d(new Int32Array(fs.readFileSync(picture)), [Number(height), Number(width), 3], 'int32');
const { boxes, scores } = faceapi.nets.ssdMobilenetv1.forwardInput(await faceapi.toNetInput(rgb));
const found = await faceapi.nets.ssdMobilenetv1.locateFaces(rgb, { minConfidence: 0.05 });
fs.writeFileSync(
  output,
  JSON.stringify({
    boxes: await boxes[0].array(),
    scores: await scores[0].array(),
    found: found.map((one) => [one.score, one.box.left, one.box.top, one.box.right, one.box.bottom]),
  }),
);
