// node -r preload.js node_modules/azurite/dist/src/azurite.js ...
const Module = require('module');

// Telemetry and the SQL drivers are 300 MB of packages that the emulator loads or may load and does not need here.
const load = Module._load;
Module._load = (name, ...rest) => (name === 'applicationinsights' ? {} : load(name, ...rest));

// Azurite 3.37 lists all prefixes of a folder before all its blobs; the service has them in one order of names. Hadoop's
// driver relies on that, to take the prefix "d/" and the blob "d" that marks it for one folder.
const xml = require(require.resolve('azurite/dist/src/blob/generated/utils/xml.js', { paths: [process.cwd()] }));
const stringify = xml.stringifyXML;
xml.stringifyXML = (value, options) => {
  const text = stringify(value, options);
  if (!text.includes('<BlobPrefix>')) return text;
  const begin = text.indexOf('<Blobs>') + 7, end = text.lastIndexOf('</Blobs>');
  const items = text.slice(begin, end).match(/<BlobPrefix>.*?<\/BlobPrefix>|<Blob>.*?<\/Blob>/gs) || [];
  const name = (item) => /<Name[^>]*>(.*?)<\/Name>/s.exec(item)[1];
  items.sort((a, b) => (name(a) < name(b) ? -1 : name(a) > name(b) ? 1 : 0));
  return text.slice(0, begin) + items.join('') + text.slice(end);
};
