// What makes the page kinder. Photos are sent and answered without it, too.
window.cardDemo = (() => {
  const limits = JSON.parse(document.getElementById('card-limits').textContent);
  const longestSide = 1600; // Pixels; the networks need fewer
  const smallEnough = 400000; // Bytes; a smaller file is sent as it is
  const revealed = 300; // Pixels of an answer that are enough to begin to read it
  const sentences = {
    0: 'The connection was lost. It comes back by itself: try again in a moment.',
    408: 'That took too long to arrive. Please try again.',
    503: 'One moment, please: many people are asking just now. Try again in a few seconds.',
    unexpected: 'Something went wrong on our side. Please try again in a moment.',
    noPicture: 'That is no picture. Choose photos, as JPEG, PNG or WebP.',
    notAllowed: 'I may not do that here: allow it in the browser’s settings, or upload a photo instead.',
    noCamera: 'There is no camera here. Upload a photo instead.',
    taken: 'Please take away the photo that is there, and try again.',
  };
  const checked = new WeakSet(); // Lists of files that were looked through and go to Gradio now

  // The line at the top that says what went wrong; an empty text hides it.
  const say = text => {
    const notice = document.getElementById('notice');
    if (!notice) return;
    notice.textContent = text;
    notice.hidden = !text;
    if (text) notice.scrollIntoView({block: 'nearest'});
  };

  const boxAround = element => element && element.closest && element.closest('#photo, #photos');
  const fileInput = box => box.querySelector('input[type=file]');
  const megabytes = bytes => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

  // Why these files are not sent; an empty text if they are.
  const problemOf = files => {
    if (files.some(file => file.type && !file.type.startsWith('image/'))) return sentences.noPicture;
    const bytes = files.reduce((sum, file) => sum + file.size, 0);
    const size = megabytes(bytes);
    const most = megabytes(limits.bytes);
    if (files.length > limits.files) {
      return `That is too much at once: ${files.length} photos. Up to ${limits.files} go together, so choose fewer.`;
    }
    if (bytes <= limits.bytes) return '';
    if (files.length === 1) return `That file is too large: ${size}. Up to ${most} can be sent.`;
    return `Those ${files.length} photos are too large together: ${size}. Up to ${most} go at once, so choose fewer.`;
  };

  // A photo of many megapixels as a smaller JPEG; whatever can't be made smaller is sent as it is.
  const shrink = async file => {
    if (!file.type.startsWith('image/') || file.type.includes('svg') || file.size <= smallEnough) return file;
    try {
      const picture = await createImageBitmap(file);
      const scale = Math.min(1, longestSide / Math.max(picture.width, picture.height));
      const canvas = document.createElement('canvas');
      canvas.width = Math.round(picture.width * scale);
      canvas.height = Math.round(picture.height * scale);
      const pen = canvas.getContext('2d');
      pen.fillStyle = '#fff';
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
      picture.close();
      const blob = await new Promise(done => canvas.toBlob(done, 'image/jpeg', 0.9));
      if (!blob || blob.size >= file.size) return file;
      return new File([blob], `${file.name.replace(/\.[^.]*$/, '')}.jpg`, {type: 'image/jpeg'});
    } catch {
      return file;
    }
  };

  // The box's file input, which Gradio takes away while the camera is on or a photo is shown.
  const waitForInput = async (box, seconds) => {
    const end = Date.now() + 1000 * seconds;
    while (!fileInput(box) && Date.now() < end) await new Promise(done => setTimeout(done, 50));
    return fileInput(box);
  };

  // Hands files to Gradio as if they had been chosen, made smaller and within the limits.
  const offer = async (box, files) => {
    say('');
    const sent = [];
    for (const file of files) sent.push(await shrink(file));
    const problem = problemOf(sent);
    if (problem) return say(problem);
    if (!fileInput(box)) box.querySelector('.source-selection button')?.click(); // From the camera back to uploads
    const input = await waitForInput(box, 3);
    if (!input) return say(sentences.taken);
    const carrier = new DataTransfer();
    for (const file of box.id === 'photo' ? sent.slice(0, 1) : sent) carrier.items.add(file);
    input.files = carrier.files;
    checked.add(input.files);
    input.dispatchEvent(new Event('change', {bubbles: true}));
  };

  const takeOver = (event, box, files) => {
    event.preventDefault();
    event.stopImmediatePropagation();
    offer(box, [...files]);
  };

  document.addEventListener('change', event => {
    const box = boxAround(event.target);
    const files = event.target.files;
    if (box && event.target.type === 'file' && files.length && !checked.has(files)) takeOver(event, box, files);
  }, true);

  document.addEventListener('drop', event => {
    const box = boxAround(event.target);
    if (box && event.dataTransfer?.files.length) takeOver(event, box, event.dataTransfer.files);
  }, true);

  document.addEventListener('paste', event => {
    const files = [...(event.clipboardData?.files || [])].filter(file => file.type.startsWith('image/'));
    const boxes = [document.getElementById('photo'), document.getElementById('photos')];
    const visible = boxes.find(box => box && box.offsetParent);
    if (files.length && visible) takeOver(event, visible, files);
  }, true);

  // Gradio tells nobody why a request failed: the notice does.
  const plainFetch = window.fetch;
  window.fetch = async (...request) => {
    const isOurs = /gradio_api\/(upload|run)/.test(String(request[0]?.url || request[0]));
    try {
      const response = await plainFetch(...request);
      if (isOurs && !response.ok) {
        const answer = await response.clone().json().catch(() => ({}));
        say(sentences[response.status] || answer.error || sentences.unexpected);
      }
      return response;
    } catch (error) {
      if (isOurs) say(sentences[0]);
      throw error;
    }
  };

  addEventListener('unhandledrejection', event => {
    if (event.reason?.name === 'NotAllowedError') say(sentences.notAllowed);
    if (event.reason?.name === 'NotFoundError') say(sentences.noCamera);
  });

  document.documentElement.classList.toggle('no-camera', !navigator.mediaDevices?.getUserMedia);
  document.documentElement.classList.toggle('no-paste', !navigator.clipboard?.read);

  // Brings an answer into view if too little of it is seen.
  const reveal = id => {
    const element = document.getElementById(id);
    const place = element?.getBoundingClientRect();
    if (!place || (place.top >= 0 && place.top + Math.min(place.height, revealed) <= innerHeight)) return;
    const isCalm = matchMedia('(prefers-reduced-motion: reduce)').matches;
    const block = place.height > innerHeight ? 'start' : 'nearest';
    element.scrollIntoView({block, behavior: isCalm ? 'auto' : 'smooth'});
  };

  // Puts the cursor into the list of cards.
  const focus = id => document.querySelector(`#${id} select`)?.focus();

  return {reveal, focus};
})();
