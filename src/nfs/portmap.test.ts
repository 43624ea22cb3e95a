import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import { test } from 'node:test';
import { RpcClient, encodeCall } from '../testing/nfs-client.ts';
import { systemClock } from '../lib/clock.ts';
import { PortmapProgram, universalAddress } from './portmap.ts';
import { PortmapSocket } from './portmap-socket.ts';
import type { AdmittedCall } from './programs.ts';
import { readReply } from './rpc.ts';
import { createNfsServer } from './server.ts';
import { XdrReader, XdrWriter } from './xdr.ts';

/** The portmapper by itself, over UDP, and on a server's port. */
const silent = { info: () => undefined, warn: () => undefined };

const program = new PortmapProgram(
  [
    { program: 100_000, version: 2, protocol: 'udp', port: 111 },
    { program: 100_003, version: 3, protocol: 'tcp', port: 2049 },
    { program: 100_005, version: 3, protocol: 'tcp', port: 20_048 },
  ],
  [4, 6],
  () => 1_700_000_000_500,
);

/** The results of one call, after the RPC header. */
function ask(
  version: number,
  procedure: number,
  args: (writer: XdrWriter) => void = () => undefined,
  localAddress = '10.1.2.3',
): { status: number | undefined; results: XdrReader } {
  const writer = XdrWriter.ofSize(1_024);
  args(writer);
  let reply = Buffer.alloc(0);
  const call: AdmittedCall = {
    xid: 9,
    version,
    procedure,
    args: XdrReader.of(writer.written()),
    address: '10.1.2.4',
    localAddress,
    reply: (bytesMax, write) => {
      const out = XdrWriter.ofSize(bytesMax);
      write(out);
      reply = Buffer.from(out.written());
    },
  };
  program.call(call);
  const results = XdrReader.of(reply);
  return { status: readReply(results, 9), results };
}

function mapping(...values: number[]) {
  return (writer: XdrWriter) => {
    for (const value of values) writer.u32(value);
  };
}

function rpcb(number: number, version: number, netid: string) {
  return (writer: XdrWriter) => {
    writer.u32(number);
    writer.u32(version);
    for (const text of [netid, '', '']) writer.text(text);
  };
}

test('version 2: GETPORT, DUMP, refusals', () => {
  const port = (...values: number[]) => ask(2, 3, mapping(...values)).results.u32();
  assert.equal(port(100_003, 3, 6, 0), 2049);
  assert.equal(port(100_005, 3, 6, 0), 20_048);
  assert.equal(port(100_005, 1, 6, 0), 20_048);
  assert.equal(port(100_003, 3, 17, 0), 0);
  assert.equal(port(100_021, 4, 6, 0), 0);
  assert.equal(port(100_003, 3, 99, 0), 0);
  assert.equal(ask(2, 1, mapping(1, 1, 6, 7)).results.u32(), 0);
  assert.equal(ask(2, 2, mapping(100_003, 3, 6, 0)).results.u32(), 0);
  assert.equal(port(100_003, 3, 6, 0), 2049);
  assert.equal(ask(2, 0).status, 0);
  assert.equal(ask(2, 5).status, 3);
  const { results } = ask(2, 4);
  const list: number[][] = [];
  while (results.bool()) list.push([0, 0, 0, 0].map(() => results.u32()));
  results.done();
  assert.deepEqual(list, [
    [100_000, 2, 17, 111],
    [100_003, 3, 6, 2049],
    [100_005, 3, 6, 20_048],
  ]);
});

test('versions 3 and 4: GETADDR tells the address that was asked, DUMP both families', () => {
  const address = (netid: string, local?: string) =>
    ask(3, 3, rpcb(100_003, 3, netid), local).results.text(100);
  assert.equal(address('tcp'), '10.1.2.3.8.1');
  assert.equal(address(''), '10.1.2.3.8.1');
  assert.equal(address('tcp6', 'fd00::1'), 'fd00::1.8.1');
  assert.equal(address('tcp6'), '');
  assert.equal(address('udp'), '');
  assert.equal(ask(4, 9, rpcb(100_005, 3, 'tcp')).results.text(100), '10.1.2.3.78.80');
  assert.equal(ask(3, 6).results.u32(), 1_700_000_000);
  assert.equal(ask(3, 9).status, 3);
  const { results } = ask(4, 4);
  const netids: string[] = [];
  while (results.bool()) {
    results.skip(8);
    netids.push(`${results.text(100)} ${results.text(100)}`);
    assert.equal(results.text(100), 'superuser');
  }
  assert.equal(netids.length, 6);
  assert.ok(netids.includes('tcp 0.0.0.0.8.1') && netids.includes('tcp6 ::.8.1'));
  assert.equal(universalAddress('::', 111), '::.0.111');
});

test('another version is a mismatch from 2 to 4', () => {
  const { status, results } = ask(5, 0);
  assert.equal(status, 2);
  assert.deepEqual([results.u32(), results.u32()], [2, 4]);
});

test('UDP: answers calls, says no to others, stays silent about nonsense', async () => {
  const socket = await PortmapSocket.open(program, '127.0.0.1', 0, false, silent);
  const client = createSocket('udp4');
  const exchange = (bytes: Buffer) =>
    new Promise<Buffer>((resolve) => {
      client.once('message', resolve);
      client.send(Buffer.from([1, 2, 3]), socket.port, '127.0.0.1');
      client.send(bytes, socket.port, '127.0.0.1');
    });
  const call = (procedure: number, args: (writer: XdrWriter) => void, number = 100_000) =>
    encodeCall(77, procedure, args, { program: number, version: 2 }).subarray(4);
  const port = XdrReader.of(await exchange(call(3, mapping(100_003, 3, 6, 0))));
  assert.equal(readReply(port, 77), 0);
  assert.equal(port.u32(), 2049);
  const garbage = XdrReader.of(await exchange(call(3, mapping(100_003))));
  assert.equal(readReply(garbage, 77), 4);
  const other = XdrReader.of(await exchange(call(0, mapping(), 100_003)));
  assert.equal(readReply(other, 77), 1);
  client.close();
  await socket.close();
});

test('a server without a portmapper answers none; a taken port is said clearly', async () => {
  const options = (nfsPort: number) => ({
    clock: systemClock,
    log: silent,
    listen: {
      addresses: ['127.0.0.1'],
      nfsPort,
      mountPort: nfsPort,
      portmap: 'off' as const,
    },
  });
  const server = createNfsServer(options(0));
  await server.start();
  const client = await RpcClient.open(server.nfsPort);
  const reply = await client.call(0, () => undefined, { program: 100_000, version: 2 });
  assert.equal(reply.status, 1);
  await assert.rejects(createNfsServer(options(server.nfsPort)).start(), {
    code: 'port-taken',
    message: `tcp port ${server.nfsPort} on 127.0.0.1 is used by another program`,
  });
  await client.close();
  await server.close();
});
