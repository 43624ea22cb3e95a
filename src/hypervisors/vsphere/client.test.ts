import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import * as https from 'node:https';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import * as tls from 'node:tls';
import { isRouseError } from '../../errors.ts';
import { systemClock } from '../../lib/clock.ts';
import { testCertificate, testKey } from '../../testing/tls-certificate.ts';
import { VimClient } from './client.ts';
import { readAll } from './properties.ts';
import { runTask } from './tasks.ts';
import { normalFingerprint, readCertificate } from './trust.ts';
import type { Trust } from './trust.ts';
import { leaf } from './vim-xml.ts';

const { fingerprint256 } = new X509Certificate(testCertificate);
const password = 'p&ss <word> "quoted"';

interface Call {
  readonly method: string;
  readonly body: string;
  readonly cookie: string;
}

/** Answers each method with the next of its answers (the last one stays). */
async function fakeVim(answers: Readonly<Record<string, readonly string[]>>) {
  const calls: Call[] = [];
  const used = new Map<string, number>();
  const server = https.createServer(
    { cert: testCertificate, key: testKey },
    (request, response) => {
      let body = '';
      request.setEncoding('utf8').on('data', (part: string) => (body += part));
      request.once('end', () => {
        const method = /<soapenv:Body><(\w+) /.exec(body)?.[1] ?? '';
        assert.equal(request.headers['soapaction'], 'urn:vim25/6.7');
        calls.push({ method, body, cookie: request.headers.cookie ?? '' });
        const all = { ...usual, ...answers }[method] ?? [fault('NotSupported')];
        const turn = used.get(method) ?? 0;
        used.set(method, turn + 1);
        const answer = all[Math.min(turn, all.length - 1)] ?? '';
        response.statusCode = answer.includes('<s:Fault>') ? 500 : 200;
        response.setHeader('Content-Type', 'text/xml; charset=utf-8');
        if (method === 'Login') {
          response.setHeader('Set-Cookie', `vmware_soap_session="s${turn}"; Path=/; Secure`);
        }
        response.end(
          `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"` +
            ` xmlns:i="http://www.w3.org/2001/XMLSchema-instance"><s:Body>${answer}</s:Body></s:Envelope>`,
        );
      });
    },
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const client = clientOf(port, { fingerprint: fingerprint256 });
  return { client, calls, port, close: () => closed(client, server) };
}

async function closed(client: VimClient, server: https.Server): Promise<void> {
  await client.close();
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
}

function clientOf(port: number, trust: Trust): VimClient {
  return new VimClient({
    url: `https://127.0.0.1:${port}/sdk`,
    user: 'rouse',
    password: async () => password,
    trust,
    clock: systemClock,
  });
}

const fault = (type: string, inner = '', words = 'no') =>
  `<s:Fault><faultcode>ServerFaultCode</faultcode><faultstring>${words}</faultstring>` +
  `<detail><${type}Fault i:type="${type}">${inner}</${type}Fault></detail></s:Fault>`;
const ref = (name: string, type: string, id: string) => `<${name} type="${type}">${id}</${name}>`;
const answerOf = (method: string, inner = '') => `<${method}Response>${inner}</${method}Response>`;

const usual: Readonly<Record<string, readonly string[]>> = {
  RetrieveServiceContent: [
    answerOf(
      'RetrieveServiceContent',
      `<returnval>${ref('rootFolder', 'Folder', 'group-d1')}${ref('propertyCollector', 'PropertyCollector', 'pc')}` +
        `${ref('viewManager', 'ViewManager', 'vm')}${ref('sessionManager', 'SessionManager', 'sm')}` +
        `<about><apiType>VirtualCenter</apiType><apiVersion>7.0</apiVersion></about></returnval>`,
    ),
  ],
  Login: [answerOf('Login', '<returnval><key>k</key><userName>LAB\\rouse</userName></returnval>')],
  Logout: [answerOf('Logout')],
  CreateContainerView: [
    answerOf('CreateContainerView', ref('returnval', 'ContainerView', 'session[1]v')),
  ],
  DestroyView: [answerOf('DestroyView')],
};

test('a wrong fingerprint gets not one byte, a right one and the authority do', async () => {
  const received: number[] = [];
  let connections = 0;
  const server = tls.createServer({ cert: testCertificate, key: testKey }, (socket) => {
    socket.on('data', (bytes) => received.push(bytes.length)).on('error', () => undefined);
  });
  server.on('connection', () => (connections += 1)).on('tlsClientError', () => undefined);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const wrong = normalFingerprint('00'.repeat(32));
  for (const trust of [{ fingerprint: wrong }, { authority: otherAuthority }]) {
    const client = clientOf(port, trust);
    await assert.rejects(client.service(), (error) => isRouseError(error, 'forbidden'));
    await assert.rejects(client.fetch('/folder/x'), (error) => isRouseError(error, 'forbidden'));
    await client.close();
  }
  const seen = await readCertificate({ host: '127.0.0.1', port });
  assert.equal(seen.fingerprint, fingerprint256);
  assert.equal(seen.subject, 'CN=vcenter.test');
  await new Promise<void>((resolve) => server.close(() => resolve()));
  assert.ok(connections >= 3, `${connections} connections were made`);
  assert.deepEqual(received, []);
  for (const trust of [{ fingerprint: fingerprint256 }, { authority: testCertificate }]) {
    const vim = await fakeVim({});
    const client = clientOf(vim.port, trust);
    assert.equal((await client.service()).apiType, 'VirtualCenter');
    await client.close();
    await vim.close();
  }
});

/** PEM of nothing that signed anything here. */
const otherAuthority = tls.rootCertificates[0] ?? '';

test('logs in once for many, with what XML would break escaped, and sends its cookie', async () => {
  const vim = await fakeVim({ CurrentTime: [answerOf('CurrentTime', '<returnval>x</returnval>')] });
  const instance = { type: 'ServiceInstance', id: 'ServiceInstance' };
  await Promise.all([1, 2, 3].map(() => vim.client.call('CurrentTime', instance)));
  const logins = vim.calls.filter(({ method }) => method === 'Login');
  assert.equal(logins.length, 1);
  assert.ok(
    logins[0]?.body.includes('<password>p&amp;ss &lt;word&gt; &quot;quoted&quot;</password>'),
  );
  const cookies = vim.calls.filter(({ method }) => method === 'CurrentTime').map((c) => c.cookie);
  assert.deepEqual([...new Set(cookies)], ['vmware_soap_session="s0"']);
  await vim.close();
});

test('a session that ended is begun anew, once, and the call is sent again', async () => {
  const done = answerOf('CurrentTime', '<returnval>later</returnval>');
  const vim = await fakeVim({ CurrentTime: [fault('NotAuthenticated'), done] });
  const instance = { type: 'ServiceInstance', id: 'ServiceInstance' };
  const answer = await vim.client.call('CurrentTime', instance);
  assert.equal(answer.children[0]?.text, 'later');
  assert.equal(vim.calls.filter(({ method }) => method === 'Login').length, 2);
  assert.equal(vim.calls.at(-1)?.cookie, 'vmware_soap_session="s1"');
  await vim.close();
  const lost = await fakeVim({ CurrentTime: [fault('NotAuthenticated')] });
  await assert.rejects(lost.client.call('CurrentTime', instance), { code: 'unauthorised' });
  assert.equal(lost.calls.filter(({ method }) => method === 'Login').length, 2);
  await lost.close();
});

test('a refused login is said once and not tried again at once; it never tells the password', async () => {
  const vim = await fakeVim({ Login: [fault('InvalidLogin', '', 'Cannot complete login')] });
  for (let turn = 0; turn < 3; turn += 1) {
    await assert.rejects(vim.client.service(), (error) => {
      assert.ok(isRouseError(error, 'unauthorised'));
      const said = `${error.message} ${error.stack} ${JSON.stringify(error.toProblem())}`;
      assert.ok(said.includes('Cannot complete login') && !said.includes(password));
      return true;
    });
  }
  assert.equal(vim.calls.filter(({ method }) => method === 'Login').length, 1);
  await vim.close();
});

test('faults carry the words of vCenter, and NoPermission its privilege and object', async () => {
  const cases = [
    [
      'NoPermission',
      'forbidden',
      `${ref('object', 'HostSystem', 'host-9')}<privilegeId>Host.Config.Storage</privilegeId>`,
    ],
    ['DuplicateName', 'already-exists', '<name>x</name>'],
    ['ResourceInUse', 'busy', ''],
    ['InvalidPowerState', 'wrong-state', ''],
    ['ManagedObjectNotFound', 'not-found', ''],
    ['HostConfigFault', 'hypervisor-error', ''],
    ['SomethingNew', 'hypervisor-error', ''],
  ] as const;
  for (const [type, code, inner] of cases) {
    const words = `words of ${type}`;
    const vim = await fakeVim({ CreateNasDatastore: [fault(type, inner, words)] });
    const call = vim.client.call('CreateNasDatastore', {
      type: 'HostDatastoreSystem',
      id: 'ds/:@1',
    });
    await assert.rejects(call, (error) => {
      assert.ok(isRouseError(error, code), String(error));
      assert.ok(error.message.includes(words), error.message);
      if (type === 'NoPermission') assert.match(error.message, /Host\.Config\.Storage on host-9/);
      return true;
    });
    await vim.close();
  }
});

test('who never answers a question is away; a change that may have happened is only late', async () => {
  const server = https.createServer(
    { cert: testCertificate, key: testKey },
    (request, response) => {
      request.on('data', (part: Buffer) => {
        const method = /<soapenv:Body><(\w+) /.exec(part.toString())?.[1] ?? '';
        const answer = usual[method]?.[0];
        if (answer === undefined) return;
        response.setHeader('Set-Cookie', 'vmware_soap_session="s"; Path=/; Secure');
        response.end(
          '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"' +
            ` xmlns:i="http://www.w3.org/2001/XMLSchema-instance"><s:Body>${answer}</s:Body></s:Envelope>`,
        );
      });
    },
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const client = clientOf(port, { fingerprint: fingerprint256 });
  try {
    const self = { type: 'Folder', id: 'group-v1' };
    const late = (method: string) => client.call(method, self, [], { timeoutMs: 200 });
    await assert.rejects(late('RetrievePropertiesEx'), (error) => {
      assert.ok(isRouseError(error, 'hypervisor-unreachable'), String(error));
      assert.match(error.message, /did not answer POST \/sdk within 0.2 s/);
      return true;
    });
    await assert.rejects(late('CreateFilter'), (error) =>
      isRouseError(error, 'hypervisor-unreachable'),
    );
    await assert.rejects(late('RegisterVM_Task'), (error) => isRouseError(error, 'time-out'));
  } finally {
    server.closeAllConnections();
    await closed(client, server);
  }
});

test('all pages are read, in the right order of elements; a lost session begins the whole anew', async () => {
  const object = (id: string) =>
    `<objects>${ref('obj', 'HostSystem', id)}<propSet><name>name</name><val i:type="x:string">${id}</val></propSet></objects>`;
  const page = (method: string, id: string, token = '') =>
    answerOf(method, `<returnval>${token}${object(id)}</returnval>`);
  const vim = await fakeVim({
    RetrievePropertiesEx: [page('RetrievePropertiesEx', 'h1', '<token>t1</token>')],
    ContinueRetrievePropertiesEx: [
      fault('NotAuthenticated'),
      page('ContinueRetrievePropertiesEx', 'h2', '<token>t2</token>'),
      page('ContinueRetrievePropertiesEx', 'h3'),
    ],
  });
  const names: string[] = [];
  await readAll(vim.client, { HostSystem: ['name'] }, (one) => names.push(one.text('name') ?? ''));
  assert.deepEqual(names, ['h1', 'h2', 'h3']);
  const { body = '' } = vim.calls.find(({ method }) => method === 'RetrievePropertiesEx') ?? {};
  assert.match(
    body,
    /<specSet><propSet><type>HostSystem<\/type><all>false<\/all><pathSet>name<\/pathSet><\/propSet><objectSet><obj type="ContainerView">session\[1\]v<\/obj><skip>true<\/skip><selectSet xsi:type="TraversalSpec"><name>all<\/name><type>ContainerView<\/type><path>view<\/path><skip>false<\/skip><\/selectSet><\/objectSet><\/specSet><options><maxObjects>\d+<\/maxObjects><\/options>/,
  );
  const tokens = vim.calls.flatMap(
    ({ body: sent }) => /<token>(.*)<\/token>/.exec(sent)?.[1] ?? [],
  );
  assert.deepEqual(tokens, ['t1', 't1', 't2']);
  await vim.close();
});

test('a task is waited for with the property collector, and its progress is told', async () => {
  const update = (version: string, ...changes: readonly string[]) =>
    answerOf(
      'WaitForUpdatesEx',
      `<returnval><version>${version}</version><filterSet><objectSet><kind>modify</kind>` +
        `${ref('obj', 'Task', 't1')}${changes.join('')}</objectSet></filterSet></returnval>`,
    );
  const change = (name: string, value: string) =>
    `<changeSet><name>${name}</name><op>assign</op>${value}</changeSet>`;
  const info = '<val i:type="TaskInfo"><state>running</state><progress>10</progress></val>';
  const vim = await fakeVim({
    CreatePropertyCollector: [
      answerOf('CreatePropertyCollector', ref('returnval', 'PropertyCollector', 'pc2')),
    ],
    CreateFilter: [answerOf('CreateFilter', ref('returnval', 'PropertyFilter', 'f'))],
    DestroyPropertyCollector: [answerOf('DestroyPropertyCollector')],
    RelocateVM_Task: [answerOf('RelocateVM_Task', ref('returnval', 'Task', 't1'))],
    WaitForUpdatesEx: [
      update('1', change('info', info)),
      answerOf('WaitForUpdatesEx'),
      update('2', change('info.progress', '<val>60</val>')),
      update(
        '3',
        change('info.state', '<val>success</val>'),
        change('info.result', '<val>r</val>'),
      ),
    ],
  });
  const told: number[] = [];
  const machine = { type: 'VirtualMachine', id: 'vm-1' };
  const result = await runTask(vim.client, 'RelocateVM_Task', machine, [leaf('x', 1)], {
    what: 'relocating',
    progress: (percent) => told.push(percent),
  });
  assert.equal(result?.text, 'r');
  assert.deepEqual([...new Set(told)], [10, 60]);
  const versions = vim.calls.flatMap(
    ({ body }) => /<version>(.*)<\/version>/.exec(body)?.[1] ?? [],
  );
  // After a wait without news, another collector is told everything from the beginning.
  assert.deepEqual(versions, ['', '1', '', '2']);
  assert.equal(vim.calls.at(-1)?.method, 'DestroyPropertyCollector');
  await vim.close();
});
