import { RpcClient } from '../../src/testing/nfs-client.ts';
import type { XdrWriter } from '../../src/nfs/xdr.ts';

/**
 * Run on another host: mounts /vault/a (or what is named) and prints its handle, or tries all procedures with a handle
 * that it was given, and prints the statuses.
 */
const [what, address, handleText = '', path = '/vault/a'] = process.argv.slice(2);
const client = await RpcClient.open(2049, address);

if (what === 'mount') {
  const reply = await client.call(1, (args) => args.text(path), { program: 100_005 });
  const status = reply.results.u32();
  const handle = status === 0 ? reply.results.opaque(64).toString('hex') : '';
  console.log(JSON.stringify({ status, handle }));
} else {
  const handle = Buffer.from(handleText, 'hex');
  const statuses: number[] = [];
  for (let procedure = 1; procedure <= 21; procedure++) {
    const reply = await client.call(procedure, (args) => someArguments(args, procedure, handle));
    statuses.push(reply.results.u32());
  }
  console.log(JSON.stringify({ statuses }));
}
await client.close();

/** Well-formed arguments of each procedure, harmful where they can be. */
function someArguments(args: XdrWriter, procedure: number, handle: Buffer): void {
  args.opaque(handle);
  const name = [3, 8, 9, 10, 11, 12, 13, 14].includes(procedure) ? 'web01' : undefined;
  if (name !== undefined) args.text(name);
  if (procedure === 14 || procedure === 15) {
    args.opaque(handle);
    args.text('stolen');
  }
  if (procedure === 11) args.u32(7);
  // zeros: no change, offset 0, count 0, unchecked
  const zeros = [0, 0, 7, 0, 1, 0, 3, 5, 7, 6, 6, 6, 0, 0, 0, 0, 5, 6, 0, 0, 0, 3][procedure] ?? 0;
  for (let index = 0; index < zeros; index++) args.u32(0);
  if (procedure === 10) args.text('target');
}
